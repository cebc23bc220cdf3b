"""Recognize what a file of rows is: a table of any column names, chats, logs, exports of labelling tools."""
