"""Real experience: episodes, the files they are kept in, and how a training goes on from them."""
