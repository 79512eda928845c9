"""What the agent does to the world; nothing here decides. Called by `driver`, put together by `app`."""
