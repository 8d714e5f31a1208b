//! Every route under pipelined, unread, slow and half-open requests.
