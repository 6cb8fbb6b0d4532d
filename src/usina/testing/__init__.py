"""What tests of Usina and of its plugins share: a PostgreSQL, factories in this process and in others, contracts.

Shipped, so that a plugin kept elsewhere can be held to the same contracts.
"""
