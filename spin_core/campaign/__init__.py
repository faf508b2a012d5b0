"""A campaign: its ledger, its turns as stages, its rules for what is next, and the folder that people look into."""
