"""What Trackio has stored of a project, by its own readers, and no network to look for more."""


def refuse_network(monkeypatch):
    """Whatever asks for an address finds none, and Trackio is told of servers that it must not go to."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:1")


def stored(project):
    """Trackio's runs of a project."""
    import trackio

    return list(trackio.Api().runs(project))


def rows(project, run):
    """The rows of a run, by Trackio's own reader: step and values."""
    from trackio.sqlite_storage import SQLiteStorage

    return [(row.pop("step"), row) for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id)]


def values_of(project, run, key):
    return [(step, row[key]) for step, row in rows(project, run) if key in row]
