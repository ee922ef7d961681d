"""The tests: each name is a sentence, each claim is checked on real databases."""
