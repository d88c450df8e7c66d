"""The standalone proxy: the third front door on the core, for every language.

supervisor   one process: starts, replaces and stops the workers, answers the admin API
worker       a process that serves clients
server       a worker's listening socket and its connections
gateway      one call of a client, through the core
rest         Milvus' RESTful API, the same way
admin        health, metrics, fleet, drain; the dashboard
"""
