"""The demo model: clips drawn by a seeded script, and a narrow model trained on them that really retrieves."""
