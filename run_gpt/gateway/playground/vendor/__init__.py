"""Other people's libraries for the playground, as they were published; VERSIONS.md describes each."""
