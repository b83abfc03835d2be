"""`sdcli serve`: a process that keeps models in memory and makes pictures for others.

    process.py    from options to an exit status: sockets, signals, idle exit
    sockets.py    binding: a Unix socket that is its owner's alone, a port on loopback
    line.py       one picture at a time on one thread, and a bounded line of those that wait
    models.py     the models in memory, and making pictures with them
    native.py     what `sdcli generate` speaks, on the Unix socket (the other end is sdcli/making/remote.py)
    openai.py     the OpenAI images API, on the port

Needs FastAPI and uvicorn (`pip install 'sdcli[serve]'`); nothing outside this package does.
"""
