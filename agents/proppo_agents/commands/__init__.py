"""Subcommands of ``lightning-proppo``: what can be done with an agent and its environment."""
