# Leaves a Secret behind each time it is executed, which is then counted: a run that was started twice, or
# resumed by somebody else, can't hide it.
resource "terraform_data" "counted" {
  triggers_replace = "@TASK@"

  provisioner "local-exec" {
    interpreter = ["python3", "-c"]
    command     = <<-EOT
      import json, os, ssl, urllib.request
      account = "/var/run/secrets/kubernetes.io/serviceaccount/"
      namespace = open(account + "namespace").read()
      host = os.environ["KUBERNETES_SERVICE_HOST"]
      if ":" in host:
          host = "[" + host + "]"
      secret = {
          "metadata": {"generateName": "executed-", "labels": {"terrahalt.test/task": "@TASK@"}},
          "stringData": {"run": os.environ["USER"]},
      }
      urllib.request.urlopen(
          urllib.request.Request(
              "https://%s:%s/api/v1/namespaces/%s/secrets" % (host, os.environ["KUBERNETES_SERVICE_PORT"], namespace),
              data=json.dumps(secret).encode(),
              headers={
                  "Content-Type": "application/json",
                  "Authorization": "Bearer " + open(account + "token").read(),
              },
          ),
          context=ssl.create_default_context(cafile=account + "ca.crt"),
          timeout=30,
      ).read()
    EOT
  }
  provisioner "local-exec" {
    # Whoever can't wait ends the sleep.
    command = "sleep @SECONDS@; true"
  }
}
