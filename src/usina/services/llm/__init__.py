"""The gateway of models: a request is let in by what is in memory, sent to a replica, and settled by what was used.

Read in this order: `ask` (what a request wants), `admission` (may it?), `purse` (budgets), `route` (to whom?), `line`
(whose turn is it?), `upstream` (the bytes there and back), `call` (one request from begin to end), `gateway` (all of
them), `journal` and `books` (what was used, kept).
"""
