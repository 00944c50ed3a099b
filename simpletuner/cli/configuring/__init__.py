"""`simpletuner configure`: facts → a proposal with reasons → files. What decides is pure; asking and writing lie around it."""
