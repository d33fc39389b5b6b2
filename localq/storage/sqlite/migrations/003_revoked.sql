-- Revoked messages that an owner holds.

alter table messages add column revoked text;
