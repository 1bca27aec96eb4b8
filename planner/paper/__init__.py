"""The documents against arithmetic and simulation: 146 statements, each computed and judged."""
