"""Which run has which card: leases that die with their holders, and the queue for a card.

`records` (what is known), `decide` (pure: who may take what), `words` (who holds a card), `book`
(the leases of this machine, as locked files), `look` (the cards now), `turn` (one run's place).
May import the standard library, psutil and the guard; knows no plan.
"""
