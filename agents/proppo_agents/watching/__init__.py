"""What a person looks at: films, learning curves, and predictions beside what came."""
