"""Models behind an OpenAI-compatible API: as judges, critics and generators."""
