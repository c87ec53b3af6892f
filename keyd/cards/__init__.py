"""The card services: who a card is, authentication, secure messages, medical transactions, library strings.

They are driven by profiles (data) and compute through a `Sam`; they know no socket, no wire type and no key.
"""
