"""Between this package's types and the messages of the contract: pure functions, the same for both kinds of client."""
