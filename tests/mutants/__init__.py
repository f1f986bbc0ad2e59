"""How much the tests notice: kernels with one token changed, and which tier of the tests fails for each.

``python -m tests.mutants`` chooses the changes by a seed, tries each in a copy of the tree, and tabulates.
"""
