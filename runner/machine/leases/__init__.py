"""Which run has which GPU: leases that die with their holders, and the queue for a GPU.

`models` (what is known), `schedule` (pure: who may take what), `words` (who holds a GPU), `store`
(the leases of this machine, as locked files), `observe` (the GPUs now), `turn` (one run's place).
May import the standard library, psutil and runner.machine; knows no plan.
"""
