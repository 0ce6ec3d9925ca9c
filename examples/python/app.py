"""Answers every request with a line that says who it is."""

import platform

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return f"Hello from the Python example, Python {platform.python_version()}\n", {"Content-Type": "text/plain"}
