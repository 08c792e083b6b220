"""The process that stands between us and one untrusted program. Standard library only, relative imports only.

`edgeforge.validation.execution.supervisor` starts a bare interpreter for it, one per program, in which this package is
called `warden` and nothing of EdgeForge's or the user's packages can be imported. Three processes follow each other:

    warden   outside (main.py): takes the request, opens the namespaces, watches time, memory and output, ends the tree
    keeper   first process of the new PID namespace (keeper.py): builds the root, reaps, and with it everything ends
    program  limits, user, Landlock and seccomp (program.py), then exec of a fresh interpreter that runs inside.py
"""
