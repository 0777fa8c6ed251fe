"""What is asked elsewhere: chat models, embeddings, stores of facts; over HTTP, or locally in its place."""
