import os

from bottle import route, run


@route("/hello/<name>")
def hello(name):
    return f"Hello, {name}!\n"


run(host="127.0.0.1", port=int(os.environ["PORT"]))
