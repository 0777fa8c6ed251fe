"""What any project could use: files that appear whole, threads, processes, HTTP. No word of the domain."""
