"""Keep the libraries' own messages and downloads out of a command that prints answers.

Imports transformers when it is called.
"""

from __future__ import annotations

import logging
import os
import warnings

from runner.engines.sft.plan import SftPlan


def silence_libraries(plan: SftPlan) -> None:
    """Silence the libraries' warnings and progress bars; allow the network for hub models only."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if plan.model.kind != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
