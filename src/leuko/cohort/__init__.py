"""Many subjects: BIDS, tables, jobs, ratings, the challenge."""
