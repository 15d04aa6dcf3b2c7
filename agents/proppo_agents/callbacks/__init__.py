"""Lightning callbacks that watch an agent."""
