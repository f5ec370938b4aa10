-- A study that has been quiet goes to the node. What the node sends back makes the study quiet once
-- more; the node then knows every instance already, its own among them, and sends nothing.
function OnStableStudy(study, tags, metadata)
   RestApiPost('/modalities/node/store', DumpJson({Resources = {study}, Synchronous = false}, true))
end
