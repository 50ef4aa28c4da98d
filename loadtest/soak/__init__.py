"""A soak: a server under what clients and operators do, for as long as a leak or a wrong count needs to show.

`traffic` says what is sent, `sentinels` which answers are known, `user` sends and `operator` reloads the policy,
`ledger` is the client's side of the books, `books` compares the server's with it, `memory` finds the slope of its
processes, and `verdict` puts both together.
"""
