"""A list of things to do: `todo.py web` shows it to people, `todo.py store` keeps it in SQLite, on a volume.

As many processes of the first kind as wanted, one of the second. Nothing but Python is needed.
"""

import html
import json
import os
import sqlite3
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

PORT = int(os.environ.get("PORT", "8080"))
STORE = os.environ.get("STORE", f"http://{os.environ.get('FLYNN_APP_NAME', 'todo')}-store.discoverd:8080")
DATABASE = os.environ.get("DATABASE", "/data/todo.sqlite")

PAGE = """<!doctype html><title>To do</title><h1>To do</h1><ul>{items}</ul>
<form method=post action=/><input name=text required autofocus><button>Add</button></form>"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, kind="application/json", **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, form, *values):
        print(form % values, flush=True)


class Web(Handler):
    def do_GET(self):
        if self.path == "/health":
            return self.answer(200, b"fine\n", "text/plain")
        todos = ask("GET")
        items = "".join(f"<li>{html.escape(todo)}</li>" for todo in todos)
        self.answer(200, PAGE.format(items=items).encode(), "text/html; charset=utf-8")

    def do_POST(self):
        for text in parse_qs(self.body().decode()).get("text", []):
            ask("POST", text.encode())
        self.answer(303, b"", Location="/")


class Store(Handler):
    def do_GET(self):
        with connect() as database:
            todos = [text for (text,) in database.execute("SELECT text FROM todos ORDER BY id")]
        self.answer(200, json.dumps(todos).encode())

    def do_POST(self):
        with connect() as database:
            database.execute("INSERT INTO todos (text) VALUES (?)", [self.body().decode()])
        self.answer(201, b"{}")


def ask(method, body=None):
    with urllib.request.urlopen(urllib.request.Request(STORE, body, method=method), timeout=10) as response:
        return json.load(response)


def connect():
    database = sqlite3.connect(DATABASE, timeout=10)
    database.execute("CREATE TABLE IF NOT EXISTS todos (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    return database


if __name__ == "__main__":
    handler = {"web": Web, "store": Store}[sys.argv[1]]
    ThreadingHTTPServer(("", PORT), handler).serve_forever()
