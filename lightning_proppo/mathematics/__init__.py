"""Functions of tensors, distributions and numbers: no nodes, no messages, no framework."""
