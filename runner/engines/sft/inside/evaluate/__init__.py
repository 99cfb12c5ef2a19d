"""Measuring a model on rows with known answers.

`python -m runner.engines.sft.inside.evaluate FOLDER`.

`evaluation` is the story; `rows` says what is measured, `tasks` what is asked of the answers;
`answers`, `intervals` and `metrics` are pure (values in, values out); `sight`,
`generate` and `loss` touch torch, and `measure` puts them together; `record` and `picture` write
what is left. `request`, `progress` and `state` are the process around it.
"""
