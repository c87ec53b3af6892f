"""The store: what has to outlive the process, in SQLite or PostgreSQL. It never sees a key in clear."""
