"""The documents' own rules, formulas and placements, as plain functions."""
