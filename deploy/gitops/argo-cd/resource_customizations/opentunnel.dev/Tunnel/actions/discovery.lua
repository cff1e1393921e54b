-- The buttons that a Tunnel has. One that would do nothing in its present state is disabled.
local main = {}
if obj.status ~= nil and obj.status.conditions ~= nil and obj.status.conditions[1] ~= nil then
  main = obj.status.conditions[1]
end
local deleted = obj.metadata.deletionTimestamp ~= nil
local suspended = obj.spec.suspend == true
local ready = main.type == "Ready" and main.status == "True"
local ended = main.type == "Ended" and (main.reason == "Expired" or main.reason == "Closed")

local actions = {}
actions["rotate"] = {
  ["disabled"] = deleted or not ready,
  ["displayName"] = "New tokens",
  ["iconClass"] = "fa fa-fw fa-sync"
}
actions["suspend"] = {
  ["disabled"] = deleted or suspended,
  ["displayName"] = "Suspend (closes the tunnel)",
  ["iconClass"] = "fa fa-fw fa-pause"
}
actions["resume"] = {
  ["disabled"] = deleted or not suspended,
  ["displayName"] = "Resume (opens a new tunnel)",
  ["iconClass"] = "fa fa-fw fa-play"
}
actions["reopen"] = {
  ["disabled"] = deleted or suspended or not ended,
  ["displayName"] = "Reopen (now and from now on: sets reopenPolicy)",
  ["iconClass"] = "fa fa-fw fa-redo"
}
return actions
