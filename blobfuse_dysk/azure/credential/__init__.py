"""All that concerns a credential: where it is found, what it proves, how it is renewed."""
