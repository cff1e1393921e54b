-- Opens another tunnel after the end. An action makes one edit, and the policy is the one edit that does it. So later
-- ends of the same kind are followed by another tunnel, too; for one tunnel only, suspend and then resume.
if obj.status.conditions[1].reason == "Closed" then
  obj.spec.reopenPolicy = "Always"
else
  obj.spec.reopenPolicy = "OnExpiry"
end
return obj
