"""The replies that a listener gives by itself, each with its enhanced status code (RFC 3463, RFC 2034).

What intake decides comes as a Reply from there. Texts are generic: they tell a client what to do, never what we know.
"""

from __future__ import annotations

from relayd.core.reply import Reply

OK = Reply(250, "2.0.0", "OK")
SENDER_OK = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
START_MAIL = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE = Reply(221, "2.0.0", "Bye")
HELP = Reply(214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY STARTTLS AUTH")
VRFY = Reply(252, "2.5.0", "Send some mail and see")
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")

BAD_LINE = Reply(501, "5.5.2", "The command has control characters or is not UTF-8")
BARE_LF_LINE = Reply(500, "5.5.2", "End lines with CRLF")
EMPTY_LINE = Reply(500, "5.5.2", "That is no command")
LINE_TOO_LONG = Reply(500, "5.5.2", "The line is too long")
AUTH_LINE_TOO_LONG = Reply(500, "5.5.6", "The line is too long")
UNKNOWN = Reply(500, "5.5.1", "Unknown command")
NOT_OFFERED = Reply(502, "5.5.1", "Not offered here")
NO_ARGUMENT = Reply(501, "5.5.4", "The command takes no argument")
NEEDS_NAME = Reply(501, "5.5.4", "Say your host name")
HELLO_FIRST = Reply(503, "5.5.1", "Send EHLO first")
MAIL_OPEN = Reply(503, "5.5.1", "A mail is open already; end it or send RSET")
MAIL_FIRST = Reply(503, "5.5.1", "Send MAIL first")
RCPT_FIRST = Reply(503, "5.5.1", "Send RCPT first")
NO_RECIPIENT = Reply(554, "5.5.1", "No valid recipients")
CHUNKING = Reply(503, "5.5.1", "Go on with BDAT, or send RSET")
CHUNK_FAILED = Reply(503, "5.5.1", "A chunk was refused before; send RSET")
BAD_CHUNK = Reply(501, "5.5.4", "Write BDAT octets, or BDAT octets LAST")

TLS_ACTIVE = Reply(503, "5.5.1", "TLS is active already")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS is not available at the moment")

AUTH_TWICE = Reply(503, "5.5.1", "You are logged in already")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "Encryption is required for AUTH")
AUTH_UNKNOWN = Reply(504, "5.5.4", "Unknown mechanism; take PLAIN or LOGIN")
AUTH_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
AUTH_BAD_BASE64 = Reply(501, "5.5.2", "That is not base64")
AUTH_MALFORMED = Reply(501, "5.5.2", "Malformed credentials")
AUTH_INVALID = Reply(535, "5.7.8", "Authentication failed")

XCLIENT_DENIED = Reply(550, "5.7.0", "You may not use XCLIENT")
XCLIENT_BAD = Reply(501, "5.5.4", "Malformed XCLIENT attributes")

TOO_BIG = Reply(552, "5.3.4", "The message is too big")
NO_MEMORY = Reply(452, "4.3.1", "Out of memory for messages at the moment; try again later")
BARE_NEWLINE = Reply(550, "5.6.11", "The message has a bare CR or LF; end lines with CRLF")
HIDDEN_END = Reply(550, "5.6.11", "A line of NULs and a dot might end the message for other servers")
LONG_LINE = Reply(554, "5.6.0", "A line of the message is too long")
INTERNAL = Reply(451, "4.3.0", "Something went wrong here; try again later")
INTERNAL_CLOSE = Reply(421, "4.3.0", "Something went wrong here; try again later")

DRAINING = Reply(421, "4.3.2", "The service is shutting down; try again in a moment")
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "Too many connections; try again later")
TOO_MANY_FROM_YOU = Reply(421, "4.7.0", "Too many connections from your address")
TIMED_OUT = Reply(421, "4.4.2", "Time-out")
DATA_TIMED_OUT = Reply(421, "4.4.2", "Time-out while waiting for message data")
TOO_SLOW = Reply(421, "4.4.2", "The message data comes too slowly")
SESSION_OVER = Reply(421, "4.4.2", "The session has lasted too long; connect again")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands without a mail")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
EARLY_TALKER = Reply(554, "5.5.0", "You spoke before the greeting")
TOO_EARLY = Reply(554, "5.5.0", "You sent more before the reply you had to wait for")
NOT_SMTP = Reply(554, "5.5.0", "This is an SMTP server")
TLS_TO_PLAIN = Reply(554, "5.5.0", "This port does not begin with TLS; send EHLO and STARTTLS")
PROXY_DENIED = Reply(554, "5.7.0", "You may not use PROXY")
PROXY_BAD = Reply(554, "5.5.0", "Malformed PROXY header")
