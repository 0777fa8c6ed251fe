"""WHERE USERS MEET IT: post-processors for the retrieval pipelines that there are, one library per file."""
