-- A workflow can be drawn from any of its steps, those that have ended too.

drop index messages_behind;

create index messages_followers on messages (after) where after is not null;
