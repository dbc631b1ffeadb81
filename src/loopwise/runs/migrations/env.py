"""Alembic's entry: runs the migrations on the connection that ``database.open_engine`` hands over."""

from alembic import context

# One transaction around all of it: a process killed half-way leaves the journal as it was.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
