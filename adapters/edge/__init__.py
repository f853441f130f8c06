"""The HTTP edge: clients of OpenAI and Anthropic, and the users' own doors, on the bus.

One file per dialect holds its translations, which are pure; `exchange.py` is the life of one HTTP request; `ports.py`
says what the edge needs of the bus.
"""
