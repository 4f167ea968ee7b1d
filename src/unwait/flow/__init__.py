"""Bounded concurrency: `map`, `stream` and `Pipeline` over limits, retries and a journal. Knows nothing of HTTP."""
