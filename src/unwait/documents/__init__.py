"""Documents to a database that can be searched: sources, text, chunks, vectors, summaries, records."""
