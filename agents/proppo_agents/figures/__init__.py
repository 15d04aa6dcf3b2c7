"""The figures of the Proppo paper's appendix, and its variance against beta, computed anew.

One module for each experiment: a function that computes its table, one that draws it, and one that
tells whether what the paper says about it holds. ``lightning-proppo figures`` runs them.
"""
