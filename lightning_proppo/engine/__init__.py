"""From PyTorch's graph to the loss: cuts, segments, tapes, and the hand-over."""
