-- The health of a Tunnel: what Argo CD shows, and what the sync waves wait for. docs/gitops.md lists every state.
local health = { status = "Progressing", message = "Waiting for the operator" }
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    if condition.type == "Ready" then
      health.status = "Healthy"
    elseif condition.type == "Ended" then
      -- As a finished Job: nothing more follows.
      health.status = condition.reason == "Suspended" and "Suspended" or "Healthy"
    elseif condition.type == "Stalled" then
      health.status = "Degraded"
    end
  end
  health.message = condition.reason .. ": " .. condition.message
end
return health
