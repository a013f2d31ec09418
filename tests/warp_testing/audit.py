"""An append-only record, kept by PostgreSQL's own triggers, of every write to a target's tables and of what
was committed together with it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.sql import SQL, Literal

_INSTALL = """
CREATE SCHEMA audit;
CREATE TABLE audit.writes (n bigint GENERATED ALWAYS AS IDENTITY, relation text, key text, version bigint, op text,
    txid xid8 DEFAULT pg_current_xact_id());
CREATE TABLE audit.commits (txid xid8 DEFAULT pg_current_xact_id(), kind text);

CREATE FUNCTION audit.row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO audit.writes (relation, key, version, op)
            VALUES (TG_TABLE_NAME, to_jsonb(OLD) ->> '_id', OLD._warp_version, TG_OP);
    ELSE
        INSERT INTO audit.writes (relation, key, version, op)
            VALUES (TG_TABLE_NAME, to_jsonb(NEW) ->> '_id', NEW._warp_version, TG_OP);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION audit.step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.commits (kind) VALUES (TG_ARGV[0]);
    RETURN NULL;
END $$;

CREATE FUNCTION audit.created() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE made record;
BEGIN
    FOR made IN SELECT objid::regclass AS id, schema_name, object_identity FROM pg_event_trigger_ddl_commands()
        WHERE object_type = 'table'
    LOOP
        IF made.schema_name = {target} THEN
            EXECUTE format('CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON %s'
                ' FOR EACH ROW EXECUTE FUNCTION audit.row()', made.id);
        ELSIF made.object_identity = {metadata} || '.sync_markers' THEN
            EXECUTE format('CREATE TRIGGER audit AFTER INSERT OR UPDATE ON %s'
                ' FOR EACH ROW EXECUTE FUNCTION audit.step(''stream'')', made.id);
        ELSIF made.object_identity = {metadata} || '.snapshot_chunks' THEN
            EXECUTE format('CREATE TRIGGER audit AFTER UPDATE ON %s FOR EACH ROW WHEN (NEW.state = ''done'')'
                ' EXECUTE FUNCTION audit.step(''chunk'')', made.id);
        END IF;
    END LOOP;
END $$;

CREATE EVENT TRIGGER audit ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION audit.created();
"""

_ALONE = """
SELECT w.relation, w.key, w.version, w.op FROM audit.writes w
WHERE NOT EXISTS (SELECT FROM audit.commits c WHERE c.txid = w.txid)
"""
_TWICE = """
SELECT w.relation, w.key, w.version, w.op, c.kind, count(*) FROM audit.writes w
JOIN (SELECT DISTINCT txid, kind FROM audit.commits) c USING (txid)
GROUP BY 1, 2, 3, 4, 5 HAVING count(*) > 1
"""
_COPIED_TWICE = """
SELECT w.relation, w.key, count(*) FROM audit.writes w JOIN audit.commits c USING (txid)
WHERE c.kind = 'chunk' GROUP BY 1, 2 HAVING count(*) > 1
"""


class Audit:
    """Installed in a database before the worker first runs there."""

    def __init__(self, uri: str, target: str, metadata: str = "cartridge_warp_metadata") -> None:
        self.uri = uri
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(SQL(_INSTALL).format(target=Literal(target), metadata=Literal(metadata)))

    def ask(self, query: str, *parameters: Any) -> list[Any]:
        """Rows of a query."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def writes(self) -> int:
        """How many writes there were."""
        return int(self.ask("SELECT count(*) FROM audit.writes")[0][0])

    def deletes(self) -> int:
        """How many rows were deleted."""
        return int(self.ask("SELECT count(*) FROM audit.writes WHERE op = 'DELETE'")[0][0])

    def check(self) -> None:
        """Each write came with the position, or with the chunk, that speaks of it, and came once. (A chunk and
        the stream may each write the same version of a row: the chunk's stamp is then the event's time.)"""
        assert self.ask(_ALONE) == [], "written without a position"
        assert self.ask(_TWICE) == [], "one version written twice"
        assert self.ask(_COPIED_TWICE) == [], "copied twice"
